"""Find duplicate rows: searches yield links, links form groups, and one row of each group is kept."""
