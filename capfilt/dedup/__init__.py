"""Which rows repeat each other: searches that give links, links that make groups, groups that have one keeper."""
