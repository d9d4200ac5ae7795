"""What the user sees: the plan as a table, the screen."""
