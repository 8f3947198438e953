"""Write the tables of the pages from the committed results."""
