"""Models as files that other engines run, with inputs and outputs that prove them there."""
