"""From a store to a ranking of the samples whose labels look wrong."""
