"""Classify a square that is resized already, with OpenCV's dnn module."""

import cv2
import numpy as np

network = cv2.dnn.readNetFromONNX("int8-ptq.onnx")
pixels = np.asarray(cv2.imread("square.png", cv2.IMREAD_COLOR_RGB))
network.setInput(pixels[None].astype(np.float32) - 128)  # a first layer in float: without - 128
logits = network.forward()[0]
