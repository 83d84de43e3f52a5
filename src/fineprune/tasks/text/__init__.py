"""Classification and regression of single texts and of pairs."""
