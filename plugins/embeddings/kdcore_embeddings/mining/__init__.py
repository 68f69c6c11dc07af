"""Find hard negatives for groups of a query and its document."""
