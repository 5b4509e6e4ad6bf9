"""What a layer holds between forwards: everything, a window, or both; growing or at fixed addresses."""
