"""What is said of pictures as a set: how near to others, how varied, how often one of several is right."""
