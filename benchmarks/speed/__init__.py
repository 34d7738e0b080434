"""Speed of this machine, side by side with the naive code and with other libraries."""
