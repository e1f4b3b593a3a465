"""What is looked at before time is spent."""
