"""What a task is: its data, its head and its metric."""
