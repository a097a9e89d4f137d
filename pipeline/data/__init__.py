"""Labelled images: sources, splits and the prepared store, and the views and batches made of them."""
