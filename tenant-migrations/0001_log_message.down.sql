drop table log_message;
