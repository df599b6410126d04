"""What training cost the model it started from: its predictions on general text before and after."""
