"""Shipped files on their way to where they run: a folder to hand over, and a page for browsers."""
