import { once } from "node:events";
import { closeSync, writeSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { describe, expect, it, onTestFinished } from "vitest";
import { type NbdExport, NbdHandshake } from "./nbd-handshake.ts";
import { NbdServer, type NbdServerLimits } from "./nbd-server.ts";
import { portModule } from "./port.ts";

const DISK: NbdExport = {
  name: "disk",
  description: "",
  size: 1 << 20,
  readOnly: true,
  trim: false,
  writeZeroes: false,
  fastZero: false,
  blockSize: { minimum: 512, preferred: 4096, maximum: 1 << 25 },
};

interface Attached {
  socket: number;
  received: Uint8Array;
  structuredReplies: boolean;
  readOnly: boolean;
  close: () => void;
}

/** A server whose connections end here instead of in a data plane. */
async function start(limits: Partial<NbdServerLimits> = {}, attach: () => Promise<number> = async () => 1) {
  const attached: Attached[] = [];
  const warnings: string[] = [];
  const thread = {
    attachNbd: (connection: Omit<Attached, "close">, close: () => void) => {
      attached.push({ ...connection, close });
      return attach();
    },
  };
  const server = new NbdServer(portModule(), thread, DISK, (warning) => warnings.push(warning), {
    handshakeMs: 5000,
    connections: 8,
    ...limits,
  });
  const address = await server.listen({ kind: "tcp", host: "127.0.0.1", port: 0 });
  onTestFinished(() => server.close());
  const port = address.kind === "tcp" ? address.port : 0;
  return { server, attached, warnings, port };
}

async function client(port: number): Promise<Socket> {
  const socket = connect(port, "127.0.0.1");
  socket.on("error", () => {});
  onTestFinished(() => {
    socket.destroy();
  });
  await once(socket, "connect");
  return socket;
}

/** A client's side of EXPORT_NAME. */
const CHOOSE = Buffer.concat([
  Buffer.from([0, 0, 0, 3]),
  Buffer.from("IHAVEOPT"),
  Buffer.from([0, 0, 0, 1, 0, 0, 0, 0]),
]);
const GREETING_BYTES = NbdHandshake.greeting().length;
const CHOSEN_BYTES = 10;

async function receive(socket: Socket, count: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for (let length = 0; length < count; ) {
    const [chunk]: Buffer[] = await once(socket, "data");
    if (chunk === undefined) throw new Error("no data");
    chunks.push(chunk);
    length += chunk.length;
  }
  return Buffer.concat(chunks);
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

describe("NbdServer", () => {
  it("hands a connection over with all bytes that came too early", async () => {
    const { attached, port, warnings } = await start();
    const socket = await client(port);
    const early = Buffer.alloc(30_000, "early");
    socket.write(Buffer.concat([CHOOSE, early]));
    const answer = await receive(socket, GREETING_BYTES + CHOSEN_BYTES);
    expect(answer.subarray(0, GREETING_BYTES)).toEqual(NbdHandshake.greeting());
    await until(() => attached.length === 1);
    const [connection] = attached;
    if (connection === undefined) throw new Error("not attached");
    expect(connection).toMatchObject({ structuredReplies: false, readOnly: true });
    expect(connection.received.length).toBeGreaterThan(0);
    expect(early.subarray(0, connection.received.length).equals(connection.received)).toBe(true);

    // The connection lives on without Node: what is sent through the descriptor arrives.
    const arrives = receive(socket, 5);
    writeSync(connection.socket, "hello");
    expect(String(await arrives)).toBe("hello");
    const ended = once(socket, "end");
    closeSync(connection.socket);
    await ended;
    expect(warnings).toEqual([]);
  });

  it("ends handshakes that take too long", async () => {
    const { port, attached } = await start({ handshakeMs: 100 });
    const silent = await client(port);
    const slow = await client(port);
    slow.write(CHOOSE.subarray(0, 9));
    for (const socket of [silent, slow]) socket.resume();
    await Promise.all([once(silent, "close"), once(slow, "close")]);
    expect(attached).toEqual([]);
  });

  it("ends the connection of a client that talks nonsense, after its answer", async () => {
    const { port } = await start();
    const socket = await client(port);
    socket.write(Buffer.alloc(100, 0xff));
    expect(await receive(socket, GREETING_BYTES)).toEqual(NbdHandshake.greeting());
    socket.resume();
    await once(socket, "close");
  });

  it("has a limit to its connections, attached or not", async () => {
    const { port, attached } = await start({ connections: 2 });
    const first = await client(port);
    first.write(CHOOSE);
    await receive(first, GREETING_BYTES + CHOSEN_BYTES);
    const second = await client(port);
    await receive(second, GREETING_BYTES);
    const third = await client(port);
    third.resume();
    await once(third, "close");
    await until(() => attached.length === 1);
    for (const { socket, close } of attached) {
      closeSync(socket);
      close();
    }
    const fourth = await client(port);
    expect(await receive(fourth, GREETING_BYTES)).toEqual(NbdHandshake.greeting());
  });

  it("says so when a connection can't be attached, and makes room again", async () => {
    const { port, attached, warnings } = await start({ connections: 1 }, () => Promise.reject(new Error("too many")));
    for (let round = 0; round < 2; round++) {
      const socket = await client(port);
      socket.write(CHOOSE);
      await receive(socket, GREETING_BYTES + CHOSEN_BYTES);
      await until(() => warnings.length === round + 1);
      closeSync(attached[round]?.socket ?? -1);
    }
    expect(warnings[0]).toBe("an NBD connection failed: too many");
  });

  it("ends unfinished handshakes when it closes", async () => {
    const { server, port } = await start();
    const socket = await client(port);
    await receive(socket, GREETING_BYTES);
    socket.resume();
    server.close();
    await once(socket, "close");
  });
});
