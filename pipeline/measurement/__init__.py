"""Latency, memory and energy, and the machine that they were measured on."""
