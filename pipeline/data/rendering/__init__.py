"""Rendering of the views of many images: on the device, where they lie decoded, or in worker processes."""
