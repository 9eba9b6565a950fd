"""The modules that the lessons in notebooks/atlas make, one for each lesson."""
