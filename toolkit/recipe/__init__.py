"""What to do: the keys of a recipe, the YAML file that holds them, and their reference."""
