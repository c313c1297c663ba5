"""What any program of several ranks needs: ranks, progress, files, shards, errors, intervals. Knows nothing of models."""
