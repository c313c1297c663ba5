"""What is removed: kinds of cuts, the plan that holds them, and the checkpoint without what is cut."""
