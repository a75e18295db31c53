-- The registry's own state, subjects that can be deleted, and envelopes.
ALTER TABLE schemas ADD COLUMN refs jsonb NOT NULL DEFAULT '[]';

ALTER TABLE subjects ADD COLUMN deleted boolean NOT NULL DEFAULT false;
ALTER TABLE subjects DROP CONSTRAINT subjects_schema_key;
CREATE UNIQUE INDEX subjects_schema_key ON subjects (subject, schema_id) WHERE NOT deleted;

CREATE TABLE registry_settings (
    subject       text NOT NULL,
    compatibility text,
    mode          text,
    CONSTRAINT registry_settings_pkey PRIMARY KEY (subject)
);

CREATE TABLE envelopes (
    schema_id      integer NOT NULL,
    data_schema_id integer NOT NULL,
    CONSTRAINT envelopes_pkey PRIMARY KEY (schema_id),
    CONSTRAINT envelopes_data_key UNIQUE (data_schema_id),
    CONSTRAINT envelopes_schema_fkey FOREIGN KEY (schema_id) REFERENCES schemas (schema_id),
    CONSTRAINT envelopes_data_fkey FOREIGN KEY (data_schema_id) REFERENCES schemas (schema_id)
);
