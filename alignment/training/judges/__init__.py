"""A vision-language model that learns to judge."""
