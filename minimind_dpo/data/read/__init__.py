"""From files to preference pairs, with every problem named by file and line."""
