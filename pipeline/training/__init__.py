"""The one training loop: teacher, distillation, fine-tuning and quantisation-aware training use it."""
