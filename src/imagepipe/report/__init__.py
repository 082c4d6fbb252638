"""What people look at: the balance report, the figures and the page."""
