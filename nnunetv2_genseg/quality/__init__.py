"""How good a folder of synthetic pairs is, beside real cases."""
