"""The guided command: one folder of images and one network in, the best that the papers' methods make of it out."""
