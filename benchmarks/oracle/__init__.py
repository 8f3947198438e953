"""The oracle and its policies: pairs, unseen corruptions, filter, cost, figures."""
