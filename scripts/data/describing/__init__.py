"""What an unknown folder of images and labels seems to be."""
