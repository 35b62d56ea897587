"""From a candidate to a number: closeness to the dense model, time, and the journal of both."""
