"""What is said before a run, after it, and where it stops; a conversation with its models; what <TAB> offers."""
