-- SPDX-License-Identifier: Apache-2.0
-- What release 0.2.0 left on a PostgreSQL 17, for a superuser, and a row of kine's. One statement a line.
-- Test data: the passwords are nobody's.
CREATE ROLE "vczky4jsiiaw4uwlxwjcx6uv2oo" NOLOGIN
COMMENT ON ROLE "vczky4jsiiaw4uwlxwjcx6uv2oo" IS 'dbconnector:67984bc9eff1e2f6a41c27ac81517a8e'
CREATE ROLE "vczky4jsiiaw4uwlxwjcx6uv2oa" LOGIN PASSWORD 'SCRAM-SHA-256$4096:cvf8P+OuTmCGgqr7QRb8kg==$2LusOXUGWjMWP1hpKwp0IWU5Tu2zhLbAHqPNiC1K/BU=:C4YH7xmTv2FXhKSnIWT3Vue/DXUhSow5B1u/gZE6FQQ=' IN ROLE "vczky4jsiiaw4uwlxwjcx6uv2oo"
COMMENT ON ROLE "vczky4jsiiaw4uwlxwjcx6uv2oa" IS 'dbconnector:67984bc9eff1e2f6a41c27ac81517a8e'
CREATE ROLE "vczky4jsiiaw4uwlxwjcx6uv2ob" LOGIN PASSWORD 'SCRAM-SHA-256$4096:+TWYRh4fUcvfxciXYaY6iA==$RJSjHF8CVJRapBQxRuR6MvIJBu66HDfC+13nQELGUBk=:Ty8uFmOZww5DAxAoHS+dKL1tg0wUufSitVs6YptiEec=' IN ROLE "vczky4jsiiaw4uwlxwjcx6uv2oo"
COMMENT ON ROLE "vczky4jsiiaw4uwlxwjcx6uv2ob" IS 'dbconnector:67984bc9eff1e2f6a41c27ac81517a8e'
ALTER ROLE "vczky4jsiiaw4uwlxwjcx6uv2oa" SET role TO 'vczky4jsiiaw4uwlxwjcx6uv2oo'
ALTER ROLE "vczky4jsiiaw4uwlxwjcx6uv2ob" SET role TO 'vczky4jsiiaw4uwlxwjcx6uv2oo'
CREATE DATABASE "vczky4jsiiaw4uwlxwjcx6uv2o" TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C' ALLOW_CONNECTIONS false CONNECTION LIMIT 50
REVOKE ALL ON DATABASE "vczky4jsiiaw4uwlxwjcx6uv2o" FROM PUBLIC
GRANT CONNECT, TEMPORARY ON DATABASE "vczky4jsiiaw4uwlxwjcx6uv2o" TO "vczky4jsiiaw4uwlxwjcx6uv2oo"
COMMENT ON DATABASE "vczky4jsiiaw4uwlxwjcx6uv2o" IS 'dbconnector:67984bc9eff1e2f6a41c27ac81517a8e'
ALTER DATABASE "vczky4jsiiaw4uwlxwjcx6uv2o" ALLOW_CONNECTIONS true
-- in the database
REVOKE ALL ON SCHEMA public FROM PUBLIC
GRANT USAGE, CREATE ON SCHEMA public TO "vczky4jsiiaw4uwlxwjcx6uv2oo"
SET ROLE "vczky4jsiiaw4uwlxwjcx6uv2oo"
CREATE TABLE kine (id integer PRIMARY KEY, name varchar(630))
INSERT INTO kine VALUES (1, '/registry/health')
