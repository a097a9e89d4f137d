"""The one training loop, which teacher, distillation, fine-tuning and quantisation-aware training share."""
