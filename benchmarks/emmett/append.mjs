// Append one event to a new stream each, from a number of concurrent tasks: node append.mjs DSN EVENTS TASKS; prints events a second.
import { getPostgreSQLEventStore } from "@event-driven-io/emmett-postgresql";
import pg from "pg";

const [dsn, events, tasks] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const pool = new pg.Pool({ connectionString: dsn, max: tasks });
const store = getPostgreSQLEventStore(dsn, { connectionOptions: { pool } });
const note = "n".repeat(250);

async function append(number) {
  const data = { customer_id: `customer-${number % 20_000}`, total_cents: number % 1000, note };
  await store.appendToStream(`Order-${number}`, [{ type: "OrderPlaced", data }], {
    expectedStreamVersion: "STREAM_DOES_NOT_EXIST",
  });
}

async function run(first, count) {
  let next = first;
  const work = async () => {
    while (next < first + count) await append(next++);
  };
  await Promise.all(Array.from({ length: tasks }, work));
}

await append(0); // makes the tables
await run(1, 1000); // opens the connections
const started = performance.now();
await run(1001, events);
console.log((1000 * events) / (performance.now() - started));
await store.close();
await pool.end();
