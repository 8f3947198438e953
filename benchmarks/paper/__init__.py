"""The paper's tables and figures: from data to table or picture, at two scales."""
