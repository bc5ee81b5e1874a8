import { once } from "node:events";
import { lstat, stat, unlink } from "node:fs/promises";
import { type AddressInfo, connect, isIPv6, type Server } from "node:net";
import { dirname } from "node:path";
import { messageOf } from "./errors.ts";

/** Where a server listens. */
export type Address =
  | { readonly kind: "unix"; readonly path: string }
  | { readonly kind: "tcp"; readonly host: string; readonly port: number };

/** An address that can't be understood. */
export class AddressError extends Error {
  override readonly name = "AddressError";
}

const NBD_PORT = 10809;
/** What `sockaddr_un` has room for, without the terminating NUL. */
const MAX_UNIX_PATH_BYTES = 107;

/**
 * The address that `unix:/path`, `tcp:host` or `tcp:host:port` stands for; IPv6 addresses in brackets.
 * @throws AddressError
 */
export function parseAddress(text: string): Address {
  const [, kind, rest] = /^(unix|tcp):(.+)$/s.exec(text) ?? [];
  if (kind === "unix" && rest !== undefined) {
    return unixAddress(rest);
  }
  if (kind === "tcp" && rest !== undefined) {
    return tcpAddress(rest);
  }
  throw new AddressError(`'${text}' is no address: expected unix:/path or tcp:host:port`);
}

/**
 * The address that `unix:/path` stands for.
 * @throws AddressError
 */
export function parseUnixAddress(text: string): Address {
  const address = parseAddress(text);
  if (address.kind !== "unix") {
    throw new AddressError(`'${text}' is no Unix socket: expected unix:/path`);
  }
  return address;
}

function unixAddress(path: string): Address {
  if (Buffer.byteLength(path) > MAX_UNIX_PATH_BYTES) {
    throw new AddressError(`the path of a Unix socket has ${MAX_UNIX_PATH_BYTES} bytes at most: ${path}`);
  }
  return { kind: "unix", path };
}

function tcpAddress(rest: string): Address {
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d{1,5}))?$/.exec(rest) ?? [];
  const host = bracketed ?? plain;
  const port = digits === undefined ? NBD_PORT : Number(digits);
  if (host === undefined || port > 0xffff) {
    throw new AddressError(`'tcp:${rest}' is no address: expected tcp:host:port or tcp:[ipv6]:port`);
  }
  return { kind: "tcp", host, port };
}

/**
 * Makes a server listen. A Unix socket that nobody listens on is replaced; one that is in use, or a file that is no
 * socket, is not. `onWarning` is told of clients that can't be accepted later on, which must not end the program.
 * @returns the address with the port that was chosen for port 0
 * @throws an error that names the address.
 */
export async function listen(server: Server, address: Address, onWarning: (message: string) => void): Promise<Address> {
  try {
    const listening = await startAt(server, address);
    server.on("error", (error) => onWarning(`a client of ${formatAddress(listening)} was lost: ${error.message}`));
    return listening;
  } catch (error) {
    throw new Error(`can't listen on ${formatAddress(address)}: ${messageOf(error)}`, { cause: error });
  }
}

async function startAt(server: Server, address: Address): Promise<Address> {
  if (address.kind === "tcp") {
    await startListening(server, { host: address.host, port: address.port });
    // For a TCP server it is an object.
    const { port } = server.address() as AddressInfo;
    return { ...address, port };
  }
  await removeStaleSocket(address.path);
  await startListening(server, { path: address.path });
  return address;
}

async function startListening(server: Server, options: { path: string } | { host: string; port: number }) {
  server.listen(options);
  await once(server, "listening");
}

async function removeStaleSocket(path: string): Promise<void> {
  const status = await lstat(path).catch(() => undefined);
  if (status === undefined) {
    // Node says of a folder that isn't there that permission is denied.
    await stat(dirname(path));
    return;
  }
  if (!status.isSocket()) {
    throw new Error("there is a file of this name that is no socket");
  }
  if (await accepts(path)) {
    throw new Error("another program listens there");
  }
  await unlink(path);
}

/** Whether somebody listens on a Unix socket. */
async function accepts(path: string): Promise<boolean> {
  const socket = connect(path);
  try {
    await once(socket, "connect");
    return true;
  } catch (error) {
    // Anything but a refusal may come from a program that is there.
    return !(error instanceof Error && "code" in error && error.code === "ECONNREFUSED");
  } finally {
    socket.destroy();
  }
}

function formatAddress(address: Address): string {
  return address.kind === "unix" ? `unix:${address.path}` : `tcp:${hostAndPort(address)}`;
}

function hostAndPort(address: { host: string; port: number }): string {
  return `${isIPv6(address.host) ? `[${address.host}]` : address.host}:${address.port}`;
}

/** The URI by which clients of a protocol (`nbd`, `ring`) find an address. */
export function formatUri(protocol: string, address: Address): string {
  return address.kind === "unix"
    ? `${protocol}+unix:///?socket=${encodeURIComponent(address.path).replaceAll("%2F", "/")}`
    : `${protocol}://${hostAndPort(address)}`;
}
