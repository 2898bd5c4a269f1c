"""Rewards: functions that judge pictures, and what a group of pictures tells about each of them."""
