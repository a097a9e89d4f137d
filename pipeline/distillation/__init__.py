"""The teacher's adaptation, the store of its answers, and the training of students on them."""
