"""The report: tables, charts, one page that needs no network, and the model card."""
