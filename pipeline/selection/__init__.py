"""The table of variants, and the selection of the variant that fits a budget best."""
