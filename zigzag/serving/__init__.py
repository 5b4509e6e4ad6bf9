"""Plans inside other engines. Import-light: a plan's JSON and the ops are all that is needed of zigzag."""
