"""Whether synthetic pairs are any good: measures that compare them with real ones."""
