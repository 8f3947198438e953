"""The paper's tables and figures: from data to tables and figures, at three scales."""
