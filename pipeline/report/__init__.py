"""The report: one table, two pictures, and one page that needs no network."""
