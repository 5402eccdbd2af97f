module dbconnector

go 1.26.0
