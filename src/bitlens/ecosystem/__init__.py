"""What is written for other tools, each module for the one that it is named after."""
