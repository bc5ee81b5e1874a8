import type { Socket } from "node:net";
import * as z from "zod";

const handleSchema = z.object({ fd: z.int().nonnegative() });

/**
 * The file descriptor of a connected socket. Node has no public way to it; this is the one place that depends on
 * Node's inside, where a socket's handle has had an `fd` for as long as there are handles.
 * @throws ZodError when the socket is closed already.
 */
export function socketFd(socket: Socket): number {
  return handleSchema.parse(Reflect.get(socket, "_handle")).fd;
}
