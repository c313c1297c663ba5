"""What any program of several ranks needs and no other room: ranks, progress, files, shards, errors, intervals."""
