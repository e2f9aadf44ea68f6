"""What is measured on the images of the arms, and how the numbers are put into tables."""
